"""What reports say, by the kind of what was found: words.toml."""

from siglip_ref.process.data import read_toml

WORDS: dict[str, dict[str, str]] = read_toml(__file__, "words")
