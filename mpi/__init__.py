"""Everything of siglip-ref that communicates: the ring, the chunked loss on it, and what it is compared with."""
