"""Bytes from outside: whatever they are, they become a request or a typed error."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from reward_services.protocol import (
    InvalidRequestError,
    MalformedRequestError,
    RequestTooLargeError,
    RewardError,
    RewardFailedError,
    RewardOverloadedError,
    RewardUnavailableError,
    UnauthorisedError,
    check_request,
)
from reward_services.spec import HttpSpec
from reward_services.wire import (
    Request,
    decode_answer,
    decode_error,
    decode_request,
    encode_answer,
    encode_error,
    encode_request,
)

LIMITS = HttpSpec(max_body_mib=0.05, max_images=3, max_side=16)
PROMPTS = ["a red circle", "“Zwölf” \U0001f600"]


def _images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape or (2, 3, 5, 4), dtype=np.float32)


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(**changes: object) -> dict:
    return {"images": {"dtype": "F32", "shape": [1, 3, 1, 1], "data_offsets": [0, 12], **changes}}


def _accept(body: bytes) -> Request:
    """What a replica does to a body before it computes."""
    request = decode_request("hps", body, LIMITS)
    check_request("hps", request.images, request.prompts)
    return request


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_request_arrives_bit_for_bit(prepared: bool, gradient: bool):
    sent = Request(_images(), PROMPTS, prepared, gradient)
    found = decode_request("hps", encode_request(sent), LIMITS)
    assert (found.images.tobytes(), found.images.shape) == (sent.images.tobytes(), sent.images.shape)
    assert (found.prompts, found.prepared, found.gradient) == (PROMPTS, prepared, gradient)


def test_a_header_of_any_length_is_read_even_if_the_floats_then_lie_askew():
    plain = encode_request(Request(_images(), PROMPTS))
    (length,) = struct.unpack_from("<Q", plain)
    for padding in range(1, 5):
        body = struct.pack("<Q", length + padding) + plain[8 : 8 + length] + b" " * padding + plain[8 + length :]
        found = _accept(body).images
        assert found.flags.aligned
        np.testing.assert_array_equal(found, _images())


def test_an_answer_arrives_bit_for_bit_or_is_an_error():
    scores, gradient = np.array([1.5, -2.0], np.float32), _images()
    body = encode_answer(scores, gradient)
    found = decode_answer("hps", body)
    assert [part.tobytes() for part in found] == [scores.tobytes(), gradient.tobytes()]
    assert [part.tobytes() for part in decode_answer("hps", encode_answer(scores))] == [scores.tobytes()]
    with pytest.raises(RewardFailedError, match="reward 'hps': the answer holds images"):
        decode_answer("hps", GOOD)
    with pytest.raises(RewardFailedError, match="the answer cannot be read"):
        decode_answer("hps", body[:-1])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (MalformedRequestError, 400),
        (RequestTooLargeError, 413),
        (InvalidRequestError, 422),
        (UnauthorisedError, 401),
        (RewardFailedError, 500),
        (RewardUnavailableError, 503),
        (RewardOverloadedError, 503),
    ],
)
def test_an_error_keeps_its_type_and_words_over_http(kind: type[RewardError], status: int):
    found, body = encode_error(kind("hps", "no “luck”"))
    error = decode_error(body)
    assert found == status
    assert type(error) is kind
    assert str(error) == "reward 'hps': no “luck”"


@pytest.mark.parametrize(
    "body", [b"", b"Internal Server Error", b"[]", b'{"error": "SystemExit", "reward": "a"}', b"1"]
)
def test_words_of_somebody_else_are_no_error_of_the_service(body: bytes):
    assert decode_error(body) is None


def _with(value: float) -> np.ndarray:
    images = _images()
    images[1, 2, 0, 0] = value
    return images


GOOD = encode_request(Request(_images(), PROMPTS))
BAD: dict[str, tuple[bytes, type[RewardError], str]] = {
    "nothing": (b"", MalformedRequestError, "0 bytes"),
    "text": (b'{"images": [0.5], "prompts": ["red"]}', MalformedRequestError, "the header claims"),
    "cut in the header": (GOOD[:20], MalformedRequestError, "20 bytes is no safetensors file: .* header length"),
    "cut in the data": (GOOD[:-4], MalformedRequestError, "not fully covered"),
    "something behind": (GOOD + b"\0", MalformedRequestError, "not fully covered"),
    "no JSON": (_file(b"{'images'"), MalformedRequestError, "invalid JSON in header"),
    "no UTF-8": (_file(b"\xff\xfe{}"), MalformedRequestError, "invalid UTF-8 in header"),
    "endless nesting": (_file(b"[" * 10000), MalformedRequestError, "invalid JSON in header"),
    "no object": (_file([1]), MalformedRequestError, "invalid JSON in header: invalid type: sequence"),
    "odd metadata": (_file({"__metadata__": {"prompts": ["red"]}}), MalformedRequestError, "expected a string"),
    "no tensor": (_file({"__metadata__": {"prompts": "[]"}}), MalformedRequestError, "holds the tensors none"),
    "no prompts": (save({"images": _images()}), MalformedRequestError, "'prompts' is absent or no JSON"),
    "prompts that are no list": (
        save({"images": _images()}, {"prompts": '{"a": "b"}'}),
        MalformedRequestError,
        "'prompts' is no JSON list",
    ),
    "a wish that is none": (
        save({"images": _images()}, {"prompts": "[]", "gradient": "perhaps"}),
        MalformedRequestError,
        "metadata 'gradient' is 'perhaps': send true or false",
    ),
    "two tensors": (
        save({"images": _images(), "more": _images()}, {"prompts": "[]"}),
        MalformedRequestError,
        "holds the tensors images, more",
    ),
    "a negative size": (_file(_entry(shape=[1, -3, 1, 1])), MalformedRequestError, "integer `-3`"),
    "a size that is true": (_file(_entry(shape=[True, 3, 1, 1]), bytes(12)), MalformedRequestError, "boolean `true`"),
    "a size past all memory": (
        _file(_entry(shape=[2**39] * 8, data_offsets=[0, 2**39])),
        MalformedRequestError,
        "overflow",
    ),
    "more dimensions than arrays have": (
        _file(_entry(shape=[1] * 99, data_offsets=[0, 4]), bytes(4)),
        MalformedRequestError,
        "too many sizes",
    ),
    "no metadata": (_file(_entry() | {"__metadata__": None}, bytes(12)), MalformedRequestError, "'prompts' is absent"),
    "a header past its bound": (struct.pack("<Q", 2**23) + bytes(99), MalformedRequestError, "claims 8388608 bytes"),
    "no pictures": (_file(_entry(shape=[0, 3, 1, 1], data_offsets=[0, 0])), MalformedRequestError, "a size of 0"),
    "offsets that do not match": (
        _file(_entry(data_offsets=[4, 16]), bytes(16)),
        MalformedRequestError,
        "invalid offset",
    ),
    "a key too many": (_file(_entry(code="cos"), bytes(12)), MalformedRequestError, "not described"),
    "too many bytes": (bytes(60_000), RequestTooLargeError, r"60000 bytes: send at most 52428"),
    "too many pictures": (
        encode_request(Request(_images(4, 3, 2, 2), PROMPTS * 2)),
        RequestTooLargeError,
        "4 pictures: send at most 3",
    ),
    "pictures too large": (
        encode_request(Request(_images(1, 3, 2, 17), PROMPTS[:1])),
        RequestTooLargeError,
        r"shape \(3, 2, 17\): sides are at most 16",
    ),
    "half precision": (_file(_entry(dtype="F16", data_offsets=[0, 6]), bytes(6)), InvalidRequestError, "dtype F16"),
    "8-bit pictures": (_file(_entry(dtype="U8", data_offsets=[0, 3]), bytes(3)), InvalidRequestError, "dtype U8"),
    "channels last": (encode_request(Request(_images(1, 5, 4, 3), ["red"])), InvalidRequestError, r"\(1, 5, 4, 3\)"),
    "a scalar": (save({"images": np.ones((), np.float32)}, {"prompts": "[]"}), InvalidRequestError, r"shape \(\)"),
    "not a number": (encode_request(Request(_with(np.nan), PROMPTS)), InvalidRequestError, "finite values"),
    "infinity": (encode_request(Request(_with(np.inf), PROMPTS)), InvalidRequestError, "finite values"),
    "pixels up to 255": (encode_request(Request(_with(255.0), PROMPTS)), InvalidRequestError, r"255.0\]"),
    "an empty prompt": (
        encode_request(Request(_images(), ["red", " "])),
        InvalidRequestError,
        r"prompts\[1\] is empty",
    ),
    "too few prompts": (encode_request(Request(_images(), ["red"])), InvalidRequestError, "1 prompts for 2 pictures"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_a_typed_error_that_says_what_to_send(case: str):
    body, kind, words = BAD[case]
    with pytest.raises(RewardError, match=words) as caught:
        _accept(body)
    assert type(caught.value) is kind
    assert caught.value.reward == "hps"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_SIZES = st.lists(st.integers(-1, 4) | st.integers() | _JSON, max_size=6) | _JSON
_ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F32", "F64", "U8"]) | _JSON, "shape": _SIZES, "data_offsets": _SIZES}
)
_HEADER = st.fixed_dictionaries(
    {}, optional={"images": _ENTRY | _JSON, "inputs": _ENTRY, "__metadata__": st.just({"prompts": '["a"]'}) | _JSON}
)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A good body with a few bytes changed, removed or added."""
    body = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(body), 260)))  # mostly in the header, where they matter
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(body)


BODIES = st.binary(max_size=64) | _mutated() | st.builds(_file, _HEADER, st.binary(max_size=64))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BODIES)
@example(GOOD)
def test_any_bytes_are_a_request_that_safetensors_reads_alike_or_a_typed_error(body: bytes):
    try:
        request = _accept(body)
    except InvalidRequestError:
        return
    assert request.images.dtype == np.float32
    assert len(request.prompts) == len(request.images) > 0
    try:
        ((name, tensor),) = deserialize(body)
    except SafetensorError:  # stricter on what does not matter here, such as a key given twice
        return
    assert name == ("inputs" if request.prepared else "images")
    assert (tuple(tensor["shape"]), tensor["dtype"]) == (request.images.shape, "F32")
    assert bytes(tensor["data"]) == request.images.tobytes()
