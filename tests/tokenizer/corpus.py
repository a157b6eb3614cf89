"""Texts in many alphabets, with the corners that tokenisers differ in; and small SentencePiece models made of them."""

# ruff: noqa: RUF001  # letters that look alike are the point

from io import BytesIO

from sentencepiece import SentencePieceTrainer

TEXTS = [
    "a photo of a cat",
    "A PHOTO of a Cat.",
    "a photo of a dog, two birds; and (maybe) one fish!",
    "This is a photo of a golden-retriever's puppy.",
    "snake_case_name and __dunder__",
    "tabs\tand\nnew lines   and   many    spaces  ",
    "  leading and trailing  ",
    "",
    " ",
    "!!!",
    "...?!",
    "100% of $3.50 #hashtag @user a+b=c ~tilde",
    "Fish &amp; chips &lt;b&gt; &amp;amp; &#39;quoted&#39;",
    "naïve café résumé ÜBER Straße İstanbul",
    "schÃ¶n ist es, wenn man Umlaute repariert",
    "Eine schöne Katze sitzt auf dem Dach.",
    "Un chien noir et blanc court dans l'herbe",
    "El niño come una manzana ¿verdad? ¡Sí!",
    "Красная площадь в Москве, ВЕЧЕР",
    "Η γάτα κοιμάται ΣΤΟΝ ΗΛΙΟ",
    "一只猫坐在窗台上。",
    "窓辺に座っている猫の写真",
    "창가에 앉아 있는 고양이",
    "صورة قطة تجلس على النافذة",
    "תמונה של חתול על החלון",
    "खिड़की पर बैठी बिल्ली",
    "แมวนั่งอยู่บนหน้าต่าง",
    "Con mèo ngồi trên cửa sổ",
    "a cat 🐱 and a dog 🐶 with 👩‍👩‍👧 family",
    "ﬁne ligatures, ℌ fancy letters, ①②③, ｆｕｌｌ ｗｉｄｔｈ",
    "zero\u200bwidth, non\u00a0breaking, soft\u00adhyphen",
    "combining e\u0301 against \u00e9",
    "tabs \u2581 and the sign itself \u2581\u2581 twice",
    "long " + "word " * 100,
    "x" * 200,
    "https://example.com/a/b?c=d&e=f",
    "quotes “curly” ‘single’ «guillemets» „low“",
    "dash – em — minus − hyphen-minus",
    "ＡＢＣ ÀÉÎÕÜ ЖЗИ ΑΒΓ",
    "A",
]


def train(**settings: object) -> bytes:
    """The bytes of a small SentencePiece file."""
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS if text.strip()] * 4),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def like_c4() -> bytes:
    """As SigLIP 1's: unigram, NFKC, 0 pad, 1 end, 2 unknown."""
    return train(vocab_size=420, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


def like_gemma() -> bytes:
    """As SigLIP 2's: byte pairs with single bytes to fall back on, nothing normalised, no space put in front."""
    return train(
        vocab_size=900,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
    )
