"""Faults that were there once, each as a fixed sequence of what can be done to the world."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from world.engines import Kind, Manners
from world.world import World


@contextmanager
def scene(*, scarce: bool = True) -> Iterator[World]:
    """A world, which comes to rest and is looked at when the block ends."""
    world = World(seed=1, scarce=scarce)
    try:
        yield world
    except BaseException:
        world.abandon()
        raise
    world.close()


ROUNDS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
"""How many rounds of the event loop lie between two commands."""


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_stop_during_a_restart_wins(rounds: int) -> None:
    with scene() as world:
        world.start()
        world.advance(1.0)
        world.restart()
        world.turn(rounds)
        world.stop()


def test_a_stop_while_a_restart_waits_for_the_old_life_wins() -> None:
    with scene() as world:
        world.next_life(Kind.LLM, Manners(stubborn=True))
        world.start()
        world.advance(1.0)
        world.restart()
        world.advance(3.0)
        world.stop()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_stop_during_a_replacement_wins(rounds: int) -> None:
    with scene() as world:
        world.start(context=256)
        world.advance(1.0)
        world.start(context=128, replace_running=True)
        world.turn(rounds)
        world.stop()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_stop_during_the_first_start_wins(rounds: int) -> None:
    with scene() as world:
        world.start()
        world.turn(rounds)
        world.stop()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_start_after_a_stop_wins(rounds: int) -> None:
    with scene() as world:
        world.start()
        world.advance(1.0)
        world.stop()
        world.turn(rounds)
        world.start()


def test_a_start_after_an_llm_was_stopped_and_forgotten_wins() -> None:
    with scene() as world:
        world.start()
        world.generate()
        world.come_to_rest()
        world.stop()
        world.forget()
        world.start()


@pytest.mark.parametrize("pause", [0.0, 0.1, 1.0])
def test_a_restart_beside_an_image_that_waits_for_a_load_is_no_deadlock(pause: float) -> None:
    with scene() as world:
        world.next_life(Kind.LLM, Manners(loading=None))
        world.start()
        world.advance(1.0)
        world.generate()
        world.advance(pause)
        world.restart()


def test_a_replacement_beside_an_image_that_waits_for_a_load_is_no_deadlock() -> None:
    with scene() as world:
        world.next_life(Kind.LLM, Manners(loading=None))
        world.start(context=256)
        world.advance(1.0)
        world.generate()
        world.advance(1.0)
        world.start(context=128, replace_running=True)


def test_a_deleted_default_model_does_not_block_images_with_another() -> None:
    with scene() as world:
        world.generate()
        world.advance(10.0)
        world.delete_model("painter")
        world.import_model("sketcher", 1)
        world.advance(1.0)


def test_a_diffusion_model_imported_again_under_its_id_is_opened_where_it_is_now() -> None:
    with scene() as world:
        world.generate()
        world.advance(10.0)
        world.delete_model("painter")
        world.advance(1.0)
        world.import_model("painter", 1)
        world.advance(1.0)
        world.generate()


def test_a_chosen_diffusion_model_imported_again_is_opened_where_it_is_now() -> None:
    with scene() as world:
        world.start_engine("painter")
        world.advance(10.0)
        world.delete_model("painter")
        world.advance(1.0)
        world.import_model("painter", 1)
        world.advance(1.0)


def test_a_language_model_imported_again_under_its_id_is_opened_where_it_is_now() -> None:
    with scene() as world:
        world.start()
        world.advance(1.0)
        world.stop()
        world.advance(1.0)
        world.delete_model("talker")
        world.advance(1.0)
        world.import_model("talker", 1)
        world.advance(1.0)
        world.restart()


@pytest.mark.parametrize("rounds", range(1, 13))
def test_a_download_that_is_cancelled_while_it_is_written_as_installed_shows_its_end(rounds: int) -> None:
    with scene() as world:
        world.download_again("talker")
        world.turn(rounds)
        world.cancel_download()


@pytest.mark.parametrize("offloaded", [False, True])
def test_a_start_of_the_service_that_fails_late_keeps_what_is_to_come_back(offloaded: bool) -> None:
    with scene() as world:
        world.start()
        world.advance(1.0)
        if offloaded:
            world.next_life(Kind.IMAGE, Manners(drawing=20.0))
            world.generate()
            world.advance(1.0)
            assert world.here.llm.offloaded
        world.reopen(killed=True, port_taken=True)


def test_a_partial_folder_that_can_not_be_removed_does_not_keep_the_service_down() -> None:
    with scene() as world:
        world.download(place=1)
        world.advance(1.0)
        world.leave_partial_folder()
        world.reopen()


def test_images_that_are_streamed_to_a_slow_reader_are_not_forgotten() -> None:
    with scene() as world:
        slow = world.generate(slow=True)
        while slow.seen[-1:] != ["complete"]:
            slow.take()
            world.advance(0.1)
        world.generate()
        world.advance(2.0)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("scarce", [True, False])
def test_a_stop_of_the_image_engine_during_a_start_wins(scarce: bool, rounds: int) -> None:
    with scene(scarce=scarce) as world:
        world.start_engine()
        world.turn(rounds)
        world.stop_engine()


def test_a_start_of_the_image_engine_that_loads_nothing_yet_is_shown() -> None:
    with scene() as world:
        world.start()
        world.advance(1.0)
        world.stop_engine()
        world.advance(1.0)
        world.start_engine()
        world.advance(1.0)
        assert world.here.image.accepting
