import json

import pytest

from jaxllm.config import UserError
from jaxllm.generation.config import SamplingConfig
from jaxllm.generation.recommended import recommended


def of(folder, said):
    (folder / "generation_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    return recommended(folder)


def test_a_folder_need_not_say_anything(tmp_path):
    assert recommended(tmp_path) == (None, None, {})
    assert of(tmp_path, {"bos_token_id": 1, "eos_token_id": None, "top_p": None}) == (None, None, {})


@pytest.mark.parametrize(("said", "ends"), [(2, {2}), ([7, 2, 7], {2, 7})])
def test_one_token_or_several_end_a_text(tmp_path, said, ends):
    assert of(tmp_path, {"eos_token_id": said}).ends == ends


@pytest.mark.parametrize(
    ("said", "sampling"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, SamplingConfig(temperature=0.6, top_p=0.9)),
        ({"temperature": 1, "top_k": 20, "min_p": 0.1}, SamplingConfig(top_k=20, min_p=0.1)),
        ({"do_sample": True}, SamplingConfig()),
        ({"do_sample": False, "temperature": 0.6}, SamplingConfig(temperature=0)),
        (
            {"do_sample": False, "top_p": 0.9, "repetition_penalty": 1.1},
            SamplingConfig(temperature=0, repetition_penalty=1.1),
        ),
    ],
)
def test_sampling_is_as_it_is_said(tmp_path, said, sampling):
    assert of(tmp_path, said).sampling == sampling


def test_what_is_not_followed_is_listed_unless_it_changes_nothing(tmp_path):
    summariser = {"num_beams": 4, "length_penalty": 2.0, "min_length": 56, "forced_bos_token_id": 0}
    plain = {"num_beam_groups": 1, "typical_p": 1.0, "suppress_tokens": [], "max_length": 142, "bos_token_id": 0}
    assert of(tmp_path, {**summariser, **plain}).unfollowed == summariser


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ([1], r"expected an object, got \[1\]"),
        ({"eos_token_id": "</s>"}, "eos_token_id: expected a token's number or a list of such, got '</s>'"),
        ({"eos_token_id": []}, "eos_token_id: expected a token's number"),
        ({"top_p": "high"}, "top_p = 'high': expected a number"),
        ({"top_p": 2.0}, "'top_p': expected above 0 and at most 1, got 2.0"),
    ],
)
def test_what_cannot_be_meant_is_named_with_its_file(tmp_path, said, complaint):
    if said == "\udcff":
        (tmp_path / "generation_config.json").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"generation_config\.json.*" + complaint):
        recommended(tmp_path) if said == "\udcff" else of(tmp_path, said)
