"""Masks of secrets: what is hidden of a text, in which forms, and at which borders."""

from __future__ import annotations

import base64
import json
import os
import random
import shlex
import time
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import pytest

from prefect_launch.core.masking import MASK, Mask
from prefect_launch.errors import InternalError, SpecError

SECRET = 'p"ä\\ss/w+rd =7'


def test_mask_of_no_secrets_changes_nothing() -> None:
    for mask in (Mask(), Mask(["", "abc"])):
        assert not mask
        assert mask.data(b"\xc1abc\xff") == b"\xc1abc\xff"


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps({"a": [SECRET]}),
        json.dumps({"a": SECRET}, ensure_ascii=False),
        repr({"a": SECRET}),
        f"https://me:{quote(SECRET, safe='')}@host/x",
        quote(SECRET),
        urlencode({"token": SECRET}),
        quote_plus(SECRET),
        shlex.quote(SECRET),
        *(base64.b64encode(f"{user}{SECRET}".encode()).decode() for user in ("", "u", "us", "usr:")),
        *(base64.urlsafe_b64encode(f"{user}{SECRET}x".encode()).decode() for user in ("", "u", "us")),
    ],
)
def test_secret_is_hidden_as_a_job_may_write_it(written: str) -> None:
    hidden = Mask([SECRET]).text(f"before {written} after")
    assert MASK in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")
    for form in (SECRET, json.dumps(SECRET)[1:-1], quote(SECRET, safe=""), quote_plus(SECRET)):
        assert form not in hidden
    assert len(hidden) < len(written) + len("before  after")


def test_each_line_of_a_secret_is_hidden_but_short_ones() -> None:
    key = "-----BEGIN KEY-----\r\n  MIIEow==\n}\nabc\n-----END KEY-----\n"
    hidden = Mask([key]).text(f"{key} and MIIEow== alone, {json.dumps(key)}, abc }}")
    assert "BEGIN KEY" not in hidden
    assert "MIIEow" not in hidden
    assert hidden.endswith(", abc }")


def test_texts_of_a_secret_that_is_a_json_object_are_hidden_one_by_one() -> None:
    key = {
        "type": "key",
        "user": "ann",
        "auth": [{"private": "-----BEGIN-----\nMIIEowIB\n", "password": "correct-horse"}],
    }
    hidden = Mask([json.dumps(key)]).text(f"{json.dumps(key)} ann: correct-horse MIIEowIB key")
    assert hidden == f"{MASK} ann: {MASK} {MASK} key"
    assert Mask(["{no json at all"]).text("{no json at all") == MASK


def test_secret_of_three_characters_is_not_hidden_and_one_of_four_is() -> None:
    assert Mask(["abc", "wxyz"]).text("abc wxyz") == f"abc {MASK}"


def test_secrets_that_overlap_are_hidden_whole() -> None:
    assert Mask(["abcdef", "defghi"]).text("xabcdefghix") == f"x{MASK}x"
    assert Mask(["token", "token-long"]).text("token-long token") == f"{MASK} {MASK}"
    assert Mask(["abab"]).text("xababababx") == f"x{MASK}x"


def test_json_is_hidden_in_names_texts_and_numbers() -> None:
    mask = Mask(["12345678", "hush-hush"])
    value = {"hush-hush": 1, "a": ["x hush-hush", 12345678, 1.5, True, None, {"b": 7}]}
    assert mask.json(value) == {MASK: 1, "a": [f"x {MASK}", MASK, 1.5, True, None, {"b": 7}]}


def test_secret_that_a_part_of_a_file_cuts_is_hidden_in_both_parts(tmp_path: Path) -> None:
    path, secret = tmp_path / "log", "s3cr3t-token"
    path.write_bytes(b"ab \xc1\xff " + secret.encode() + b" cd")
    mask = Mask([secret])
    whole = mask.read(path, 0, 1000)
    assert len(whole) == path.stat().st_size
    for start in range(path.stat().st_size):
        for count in (1, 5, 11, 100):
            assert mask.read(path, start, count) == whole[start : start + count]
    assert mask.shown(whole) == b"ab \xc0\xff ******** cd"
    assert mask.read(tmp_path / "none", 0, 10) == b""


def test_copy_of_a_file_hides_a_secret_across_its_blocks(tmp_path: Path) -> None:
    source, target, secret = tmp_path / "log", tmp_path / "copy", "s3cr3t-token"
    block = 1 << 20
    source.write_bytes(b"x" * (block - 5) + secret.encode() + b"y" * block + secret.encode())
    Mask([secret]).copy(source, target)
    assert target.read_bytes() == b"x" * (block - 5) + MASK.encode() + b"y" * block + MASK.encode()


def test_text_of_an_error_is_hidden_and_it_stays_what_it_is() -> None:
    with pytest.raises(SpecError, match=r"^Invalid option '\*{8}'\.$"), Mask(["hush-hush"]).in_errors():
        raise SpecError("Invalid option 'hush-hush'.")


def test_mask_tells_no_secret_itself() -> None:
    assert "hush" not in f"{Mask(['hush-hush'])!r}"


def test_many_secrets_cost_little_more_than_one(tmp_path: Path) -> None:
    tokens = [base64.b64encode(os.urandom(24)).decode() for _ in range(60)]
    key = "\n".join(base64.b64encode(os.urandom(48)).decode() for _ in range(50))
    text = base64.b64encode(os.urandom(150_000))  # the worst: every byte may begin one
    mask = Mask([*tokens, key])
    began = time.process_time()
    assert mask.data(text) == text
    assert mask.data(b"a" * 200_000) == b"a" * 200_000
    assert time.process_time() - began < 2.0  # 0.03 s when nothing else runs


@pytest.mark.parametrize("width", [64, 76])
def test_base64_text_of_a_long_secret_is_masked_in_lines_too(width: int) -> None:
    secret = "".join(f"{number:03}," for number in range(50))
    encoded = base64.b64encode(secret.encode()).decode()
    lines = [encoded[start : start + width] for start in range(0, len(encoded), width)]
    masked = Mask([secret]).text("\n".join(lines))
    assert not any(line.rstrip("=")[:-1] in masked for line in lines)
    assert masked.count(MASK) == len(lines)


def _cpu_seconds(mask: Mask, text: str) -> float:
    """The least CPU time of three tries."""
    took = []
    for _ in range(3):
        begun = time.process_time()
        mask.text(text)
        took.append(time.process_time() - begun)
    return min(took)


@pytest.mark.parametrize("unit", ["a" * 20_000, "a" * 4_999 + "b", "a" * 49 + "b"], ids=["alike", "near", "nearer"])
def test_time_to_mask_does_not_grow_with_the_length_of_a_secret_that_repeats_itself(unit: str) -> None:
    text = unit * (200_000 // len(unit))

    short, long = (_cpu_seconds(Mask(["a" * count]), text) for count in (50, 5_000))

    assert long < 20 * short + 0.05  # a hundred times as long


@pytest.mark.parametrize("seed", range(20))
def test_each_place_where_secrets_stand_is_hidden_and_no_other(seed: int) -> None:
    chance = random.Random(seed)
    units = ["".join(chance.choices("ab", k=chance.randint(1, 6))) for _ in range(4)]
    secrets = [(unit * 200)[: chance.choice([4, 5, 9, 17, 130, 300])] for unit in units]
    text = "".join(chance.choice(units) * chance.randint(1, 90) for _ in range(40))
    hidden = {
        at
        for secret in secrets
        for start in range(len(text))
        if text.startswith(secret, start)
        for at in range(start, start + len(secret))
    }

    found = Mask(secrets).blank(text.encode())

    assert {at for at, byte in enumerate(found) if byte == 0xC1} == hidden


def test_secret_in_an_error_that_nobody_foresaw_is_hidden_with_its_cause() -> None:
    with pytest.raises(InternalError, match=r"ValueError: no \*{8}") as raised, Mask([SECRET]).in_errors():
        raise ValueError(f"no {SECRET}")
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(KeyError), Mask([SECRET]).in_errors():
        raise KeyError("nothing of it")


@pytest.mark.parametrize("secret", [SECRET, "ababab", "one line\nanother line"])
def test_text_that_goes_on_is_masked_as_a_whole_is_wherever_it_is_cut(secret: str) -> None:
    mask, whole = Mask([secret]), f"x {secret} yy {quote(secret)}{secret} z".encode()
    for at in range(len(whole) + 1):
        cut = mask.sure(whole[:at])
        assert cut <= at
        assert mask.data(whole[:cut]) + mask.data(whole[cut:]) == mask.data(whole)
    assert Mask().sure(whole) == len(whole)
