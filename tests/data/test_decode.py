"""Crops are exactly what decoding everything would give, and broken files say what is wrong with them."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile

from scaleaudio.data.decode import decode, decode_crop, measure, resample
from scaleaudio.data.decoders import probe
from scaleaudio.errors import DecodeError


def encode(wave, rate_hz=16_000, **how):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, **how)
    return buffer.getvalue()


def noise(frames, channels=1, seed=0):
    wave = np.random.default_rng(seed).uniform(-0.5, 0.5, (frames, channels))
    return wave.astype(np.float32)


@pytest.mark.parametrize("how", [{"format": "FLAC"}, {"format": "WAV"}, {"format": "AIFF"}])
@pytest.mark.parametrize("position", [0.0, 0.37, 0.999999])
def test_a_crop_is_that_stretch_of_the_whole(how, position):
    data = encode(noise(10_000), **how)
    whole, _ = decode(data, max_seconds=10)
    crop = decode_crop(data, sample_rate_hz=16_000, crop_frames=3000, position=position)
    start = int(position * 7001)
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, whole[start : start + 3000, 0])


def test_a_clip_shorter_than_the_crop_lies_inside_zeros():
    data = encode(noise(100), format="WAV", subtype="FLOAT")
    crop = decode_crop(data, sample_rate_hz=16_000, crop_frames=300, position=0.5)
    np.testing.assert_array_equal(crop[100:200], noise(100)[:, 0])
    assert not crop[:100].any() and not crop[200:].any()


def test_stereo_is_averaged_and_another_rate_resampled():
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    data = encode(np.stack([tone, np.zeros_like(tone)], 1), 44_100, format="WAV", subtype="FLOAT")
    crop = decode_crop(data, sample_rate_hz=16_000, crop_frames=16_000, position=0.0)
    spectrum = np.abs(np.fft.rfft(crop))
    assert spectrum.argmax() == 440
    assert np.abs(crop[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


def test_a_rate_without_a_common_divisor_needs_no_huge_filter():
    wave = resample(noise(7999)[:, 0], 7999, 16_000)
    assert wave.shape == (16_000,) and wave.dtype == np.float32


def test_audio_beyond_full_scale_is_scaled_into_range():
    crop = decode_crop(
        encode(noise(1000) * 40, format="WAV", subtype="FLOAT"), sample_rate_hz=16_000, crop_frames=1000, position=0.0
    )
    assert np.abs(crop).max() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"no audio at all, only words", "not readable as audio"),
        (encode(noise(16_000), format="WAV")[:10_000], "truncated after 0.31 s of 1.00 s"),
        (encode(noise(16_000), format="AIFF")[:10_000], "truncated"),
        (encode(noise(16_000), format="OGG")[:-200], "truncated"),
        (encode(np.zeros((0, 1)), format="WAV"), "0 frames"),
        (encode(noise(100), 500, format="WAV"), "sample rate 500 Hz"),
        (encode(np.array([0.1, np.nan, 0.2]), format="WAV", subtype="FLOAT"), "not finite"),
        (encode(np.array([0.1, np.inf, 0.2]), format="WAV", subtype="FLOAT"), "not finite"),
        (encode(np.array([0.1, -1e20, 0.2]), format="WAV", subtype="FLOAT"), r"samples reach 1e\+20"),
        (encode(np.full((9, 2), 3e38), format="WAV", subtype="FLOAT"), r"samples reach 3e\+38"),
    ],
)
def test_an_unusable_file_says_why(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_crop(data, sample_rate_hz=16_000, crop_frames=2, position=0.0)
    with pytest.raises(DecodeError, match=reason):
        decode(data, max_seconds=10)


def test_a_flac_cut_off_is_an_error_where_it_is_read():
    data = encode(noise(100_000), format="FLAC")[:60_000]
    with pytest.raises(DecodeError):
        decode_crop(data, sample_rate_hz=16_000, crop_frames=1000, position=0.99)


def test_a_flac_that_claims_an_endless_length_is_refused():
    data = bytearray(encode(noise(1000), format="FLAC"))
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's sample count: zero is "unknown"
    data[22:26] = bytes(4)
    with pytest.raises(DecodeError, match=r"claims 5\.76e\+14 s of audio, in a file of"):
        probe(bytes(data))


def test_a_wav_whose_writer_left_the_size_open_is_whole():
    data = bytearray(encode(noise(1000), format="WAV"))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert probe(bytes(data)).frames == 1000


def test_the_index_knows_better_than_the_header_how_long_a_file_is():
    data = encode(noise(1000), format="FLAC")
    with pytest.raises(DecodeError, match="truncated"):
        decode_crop(data, sample_rate_hz=16_000, crop_frames=100, position=0.99, frames=5000)


def test_reading_stops_at_the_seconds_allowed():
    with pytest.raises(DecodeError, match=r"longer than 0\.5 s"):
        decode(encode(noise(160_000), format="FLAC"), max_seconds=0.5)


def test_a_format_that_cannot_be_sought_in_is_still_cropped():
    data = encode(noise(16_000), 8000, format="WAV", subtype="GSM610")
    assert decode_crop(data, sample_rate_hz=8000, crop_frames=500, position=0.5).any()


def test_ffmpeg_reads_what_libsndfile_refuses(tmp_path):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec with FFmpeg is not installed: {error}"[:100])
    from torchcodec.encoders import AudioEncoder

    torch = pytest.importorskip("torch")
    AudioEncoder(torch.from_numpy(noise(16_000).T), sample_rate=16_000).to_file(tmp_path / "a.m4a")
    data = (tmp_path / "a.m4a").read_bytes()
    with pytest.raises(DecodeError):
        probe(data)
    assert decode_crop(data, sample_rate_hz=16_000, crop_frames=8000, position=0.3).any()


def test_the_length_of_an_mp3_is_counted_and_not_estimated():
    data = encode(noise(16_000), format="MP3")
    cut = data[: len(data) // 2]
    assert probe(cut).frames > 1.5 * measure(cut).frames
    assert measure(cut).frames == len(decode(cut, max_seconds=10)[0])


@pytest.mark.parametrize("position", [0.0, 0.4, 0.999])
def test_a_crop_that_has_to_be_read_from_the_start_is_that_of_the_whole_in_little_memory(position):
    data = encode(noise(400_000), 8000, format="WAV", subtype="GSM610")
    whole, _ = decode(data, max_seconds=100)
    tracemalloc.start()
    crop = decode_crop(data, sample_rate_hz=8000, crop_frames=500, position=position)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    start = int(position * (len(whole) - 499))
    np.testing.assert_array_equal(crop, whole[start : start + 500, 0])
    assert peak < len(data) + whole.nbytes / 2
