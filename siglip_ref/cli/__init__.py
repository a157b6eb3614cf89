"""The command `siglip-ref`."""
