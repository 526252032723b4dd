"""The overall percentage and what it learns from."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genaid_server.image.core.progress import Calibration, Stage, Timings, Tracker, evaluations
from genaid_server.image.core.spec import GenerationSpec, Sampler

SPEC = GenerationSpec("a cat", width=512, height=512, steps=10, count=2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_walk_of_a_batch() -> None:
    clock = Clock()
    tracker = Tracker(SPEC, Timings(load=4, encode=1, evaluation=0.1, decode=1.5), clock)
    tracker.loading(0, 400)
    assert tracker.progress().percentage == 0
    clock.now += 2
    tracker.loading(200, 400)
    half_loaded = tracker.progress()
    assert (half_loaded.stage, half_loaded.current_step, half_loaded.total_steps) == (Stage.LOADING, 200, 400)
    assert half_loaded.percentage == pytest.approx(100 * 2 / 12, abs=0.1)
    clock.now += 2
    tracker.loaded()
    assert tracker.progress().percentage == pytest.approx(100 * 4 / 12, abs=0.1)
    clock.now += 1
    tracker.diffusion(1, 0, 10)
    tracker.diffusion(2, 5, 10)
    second = tracker.progress()
    assert (second.current_image, second.total_images, second.current_step, second.total_steps) == (2, 2, 5, 10)
    assert second.percentage == pytest.approx(100 * 8 / 12, abs=0.1)
    clock.now += 4
    tracker.decoding(1)
    first_decoded = tracker.progress()
    assert (first_decoded.stage, first_decoded.current_step, first_decoded.total_steps) == (Stage.DECODING, 0, 0)
    clock.now += 1
    assert tracker.progress().percentage == pytest.approx(100 * 10 / 12, abs=0.1)
    clock.now += 1
    tracker.decoding(2)
    clock.now += 2
    measured = tracker.measured()
    assert measured == Timings(load=4, encode=1, evaluation=4 / (2 * 10 * 2), decode=2)


def test_a_resident_model_has_no_load_to_wait_for_or_to_learn() -> None:
    clock = Clock()
    tracker = Tracker(SPEC, Timings(load=1000, encode=1, evaluation=0.1, decode=1), clock)
    tracker.loaded()
    clock.now += 1
    tracker.diffusion(1, 0, 10)
    assert tracker.progress().percentage > 10
    tracker.decoding(1)
    assert math.isnan(tracker.measured().load)


def test_an_image_beyond_the_batch_is_never_reported() -> None:
    tracker = Tracker(SPEC, Timings())
    tracker.loaded()
    tracker.diffusion(3, 99, 10)
    progress = tracker.progress()
    assert (progress.current_image, progress.current_step) == (2, 10)


events = st.one_of(
    st.tuples(st.just("loading"), st.integers(0, 500), st.integers(0, 500)),
    st.tuples(st.just("loaded")),
    st.tuples(st.just("diffusion"), st.integers(1, 6), st.integers(0, 30), st.integers(1, 20)),
    st.tuples(st.just("decoding"), st.integers(1, 6)),
)
seconds = st.floats(0, 1e4)


@given(
    st.lists(st.tuples(events, seconds), max_size=40),
    st.builds(Timings, load=seconds, encode=seconds, evaluation=seconds, decode=seconds),
    st.integers(1, 5),
)
def test_the_percentage_never_falls_and_never_claims_the_end(
    happenings: list[tuple[tuple[object, ...], float]], expected: Timings, count: int
) -> None:
    clock = Clock()
    tracker = Tracker(GenerationSpec("x", count=count), expected, clock)
    last = 0.0
    for (name, *values), pause in happenings:
        getattr(tracker, str(name))(*values)
        clock.now += pause
        progress = tracker.progress()
        assert last <= progress.percentage <= 99
        assert 1 <= progress.current_image <= progress.total_images == count
        last = progress.percentage


def test_guidance_and_second_order_samplers_evaluate_the_model_more_often() -> None:
    assert evaluations(GenerationSpec("x", cfg_scale=1)) == 1
    assert evaluations(GenerationSpec("x", cfg_scale=7.5)) == 2
    assert evaluations(GenerationSpec("x", cfg_scale=7.5, sampler=Sampler.HEUN)) == 4


class TestCalibration:
    def test_what_was_measured_is_expected_next_time_and_survives_a_restart(self, tmp_path: Path) -> None:
        measured = Timings(load=3, encode=0.5, evaluation=0.2, decode=4)
        calibration = Calibration(tmp_path / "calibration.json")
        calibration.learn("m", "cpu", SPEC, measured)
        assert calibration.expect("m", "cpu", SPEC) == measured
        assert Calibration(tmp_path / "calibration.json").expect("m", "cpu", SPEC) == measured

    def test_a_second_measurement_moves_the_first(self, tmp_path: Path) -> None:
        calibration = Calibration(tmp_path / "calibration.json")
        calibration.learn("m", "cpu", SPEC, Timings(2, 2, 2, 2))
        calibration.learn("m", "cpu", SPEC, Timings(math.nan, 4, 4, 4))
        assert calibration.expect("m", "cpu", SPEC) == Timings(2, 3, 3, 3)

    def test_another_size_is_scaled_from_the_nearest(self, tmp_path: Path) -> None:
        calibration = Calibration(tmp_path / "calibration.json")
        calibration.learn("m", "cpu", SPEC, Timings(2, 1, 0.1, 1))
        calibration.learn("m", "cpu", GenerationSpec("x", width=1024, height=1024), Timings(2, 1, 0.8, 8))
        larger = calibration.expect("m", "cpu", GenerationSpec("x", width=1024, height=2048))
        assert larger == Timings(2, 1, 1.6, 16)

    def test_models_and_variants_do_not_mix(self, tmp_path: Path) -> None:
        calibration = Calibration(tmp_path / "calibration.json")
        guess = calibration.expect("other", "cpu", SPEC)
        calibration.learn("m", "cpu", SPEC, Timings(9, 9, 9, 9))
        assert calibration.expect("other", "cpu", SPEC) == guess
        assert calibration.expect("m", "vulkan", SPEC) == guess

    @pytest.mark.parametrize(
        "content",
        ["", "{", "[]", '{"m|cpu|1x1": 3}', '{"m|cpu|1x1": {"load": -1}}', '{"k": {"nope": 1}}', '{"k": {}}', "null"],
    )
    def test_a_damaged_file_is_begun_anew(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "calibration.json"
        path.write_text(content)
        calibration = Calibration(path)
        calibration.learn("m", "cpu", SPEC, Timings(1, 1, 1, 1))
        assert list(json.loads(path.read_text())) == ["m|cpu|512x512"]

    def test_a_disk_that_refuses_costs_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        calibration = Calibration(tmp_path / "file" / "calibration.json")
        calibration.learn("m", "cpu", SPEC, Timings(1, 1, 1, 1))
        assert calibration.expect("m", "cpu", SPEC) == Timings(1, 1, 1, 1)
