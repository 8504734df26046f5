"""Writes a tokenizer with any number of ids into a model folder: for models with random weights, which have no words of their own.

    python3 random_tokenizer.py VOCAB FOLDER

Byte-level BPE, as Llama 3's: the first 256 ids are the bytes, every further one is a word of its own, a space and letters. Any text becomes
tokens, and any tokens a text, of which all that are no bytes come back as they were. There are no special tokens, so that every token is text.
"""

import json
import os
import string
import sys

BYTES = 256


def byte_letters():
    """GPT-2's printable letter of each byte: its own where it is printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters, spare = [], 0x100
    for byte in range(BYTES):
        if byte in printable:
            letters.append(chr(byte))
        else:
            letters.append(chr(spare))
            spare += 1
    return letters


def word(number):
    """a, b, ... z, aa, ab, ...: each number's own."""
    letters = ""
    number += 1
    while number > 0:
        number, digit = divmod(number - 1, 26)
        letters = string.ascii_lowercase[digit] + letters
    return letters


def tokenizer(vocab):
    if vocab < BYTES:
        raise ValueError(f"a vocabulary of {vocab} ids has no room for the {BYTES} bytes")
    letters = byte_letters()
    space = letters[ord(" ")]
    words = {letter: byte for byte, letter in enumerate(letters)}
    words.update({space + word(i): BYTES + i for i in range(vocab - BYTES)})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # A word that is in the vocabulary is one token without merges that lead to it.
            "ignore_merges": True,
            "vocab": words,
            "merges": [],
        },
    }


def write_tokenizer(folder, vocab):
    # The class reads tokenizer.json as it is; that of the model's own family would make another of the vocabulary.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, content in {"tokenizer.json": tokenizer(vocab), "tokenizer_config.json": config}.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_tokenizer(sys.argv[2], int(sys.argv[1]))
