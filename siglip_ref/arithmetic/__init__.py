"""Array types that the specification computes in, besides floats: what proves it and what measures its noise.

`complex_step` gives derivatives without truncation error, `ball` and `dual` bounds that hold, `rounded` the rounding
of a lower precision. None of them is a second implementation: the operations of `siglip_ref.ops` run on them unchanged.
"""
