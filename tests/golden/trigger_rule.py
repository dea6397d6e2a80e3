"""Places of a trigger word under shuffled and dropped tags: a set of sets.yaml and a caption of its pictures, and how the
same is written for kohya's trainer and for OneTrainer, where it can be."""

TAGS = "girl, a, b, c"

CASES = {
    "in the first tag": {
        "set": {"prefix": "sks", "keep_tags": 1},
        "caption": TAGS,
        "kohya": {"caption_prefix": "sks", "keep_tokens": 1},
    },
    "before the kept tags": {
        "set": {"prefix": "sks,", "keep_tags": 1},
        "caption": TAGS,
        "kohya": {"caption_prefix": "sks,", "keep_tokens": 2},
    },
    "before all tags, none of them kept": {
        "set": {"prefix": "photo, sks,"},
        "caption": "a, b, c",
        "kohya": {"caption_prefix": "photo, sks |||", "keep_tokens_separator": "|||"},
    },
    "behind the kept tags": {
        "set": {"keep_tags": 2},
        "caption": "girl, sks, a, b, c",
        "kohya": {"keep_tokens_separator": "|||"},
        "caption for kohya": "girl, sks ||| a, b, c",
        "onetrainer": {"keep_tags_count": 2},
    },
    "behind all tags": {
        "set": {"suffix": ", sks", "keep_tags": 1},
        "caption": TAGS,
        "kohya": {"keep_tokens_separator": "|||", "caption_suffix": "||| sks"},
        "caption for kohya": "girl ||| a, b, c",
    },
}
DROP = 0.5
