"""What must hold: at each round of the event loop, when a command is answered, and when all has come to rest."""

from typing import TYPE_CHECKING, Final

from genaid_server.kit.errors import AlreadyTerminalError
from world.commands import Command, Outcome, Wanted
from world.engines import EngineChild, Kind

if TYPE_CHECKING:
    from world.world import World

FOR_EVER: Final = 400.0
"""Seconds in which all that behaves has come to an end."""
AT_REST: Final = ("RUNNING", "STOPPED", "CRASHED")
OF_LLM: Final = ("start", "restart")
_IDS: Final = {Kind.LLM: "LLM", Kind.IMAGE: "image"}


def each_round(world: "World") -> None:
    """What holds between any two rounds of callbacks."""
    stage = world.here
    holders = stage.holders
    for kind in Kind:
        living = world.nursery.living(kind)
        if living:
            world.expect(len(living) == 1, f"{len(living)} {_IDS[kind]} engines live at once")
            world.expect(
                any(holder.kind is kind for holder in holders), f"the {_IDS[kind]} engine lives without a lease"
            )
    granted = sum(holder.ram for holder in holders)
    world.expect(not world.budget or granted <= world.budget, f"{granted} bytes are granted, of {world.budget}")
    if _stopped(world, OF_LLM, ("stop",)):
        world.expect(not world.nursery.living(Kind.LLM), "an LLM engine lives after a stop that was answered")
    if _stopped(world, ("start_engine",), ("stop_engine",)):
        world.expect(not world.nursery.living(Kind.IMAGE), "an image engine lives after a stop that was answered")


def _stopped(world: "World", starts: tuple[str, ...], stops: tuple[str, ...]) -> bool:
    last = world.commands.last(*starts, *stops)
    return last is not None and last.verb in stops and last.outcome is Outcome.ANSWERED


def at_opening(world: "World", child: EngineChild, model_id: str) -> None:
    """A child opens files: those that the store has under the model's id at this moment."""
    if world.stage is None:  # the services end
        return
    name = model_id or world.stage.image.model_id
    model = world.stage.models.get(name)
    if model is not None:
        world.expect(child.paths[0] == model.path, f"{name} is opened at {child.paths[0].name}, not {model.path.name}")


def at_the_answer(world: "World", command: Command) -> None:
    """A command's answer agrees with what is shown in the same step."""
    if world.stage is None:
        return
    world.expect(command.outcome is not Outcome.BROKEN, f"{command.verb} raised {command.error!r}")
    answered, answer, stage = command.outcome is Outcome.ANSWERED, command.answer, world.stage
    match command.verb:
        case "start" | "restart" if answered and answer.state == "RUNNING":
            world.expect(answer.pid in world.nursery.served, "a start was answered, and its engine never served")
        case "stop" if answered and not world.commands.later(command, *OF_LLM):
            world.expect(not world.nursery.living(Kind.LLM), "a stop was answered, and the LLM engine lives")
            world.expect(not answer.offloaded and not answer.saved, "a stop was answered, and it is to come back")
        case "stop_engine" if answered and not world.commands.later(command, "start_engine"):
            world.expect(not world.nursery.living(Kind.IMAGE), "a stop was answered, and the image engine lives")
            world.expect(not answer.accepting, "a stop was answered, and generations are accepted")
        case "cancel_download" if answered:
            world.expect(answer.phase == "cancelled", f"a cancel was answered with {answer.phase}")
        case "cancel_download" if isinstance(command.error, AlreadyTerminalError):
            shown = stage.download_of(command.target).phase
            world.expect(shown.terminal and shown != "cancelled", f"it is over, says a cancel, and it is shown {shown}")


# --- at rest


def come_to_rest(world: "World") -> None:
    """Everybody behaves; what is under way comes to its end, and what is left is as it should be."""
    world.behave()
    watches = [_follow(world, download.id) for download in world.here.downloads]
    _all_over(world)
    world.check()
    _downloads_are_over(world, watches)
    _nothing_is_lost(world)
    _images_can_be_made(world)
    _llm_is_as_wanted(world)


def _follow(world: "World", download_id: str) -> Command:
    return world._do("follow", download_id, lambda: world.here.follow_download(download_id))


def _all_over(world: "World") -> None:
    def over() -> bool:
        if any(not generation.state.terminal for generation in world.here.generations):
            return False
        return not world.commands.pending and all(stream.over for stream in world.streams)

    if not world.loop.until(over, FOR_EVER):
        waiting = [f"{command.verb} {command.target}" for command in world.commands.pending]
        waiting += [f"generation {each.state.name}" for each in world.here.generations if not each.state.terminal]
        waiting += ["a stream" for stream in world.streams if not stream.over]
        world.violations.append(f"waits for ever: {', '.join(waiting)}")


def _downloads_are_over(world: "World", watches: list[Command]) -> None:
    for download in world.here.downloads:
        world.expect(download.phase.terminal, f"a download is {download.phase} for ever")
    for watch in watches:
        world.expect(watch.over, f"a watch of download {watch.target} never ends")


def _nothing_is_lost(world: "World") -> None:
    for stream in world.streams:
        world.expect(not stream.lost, f"images that were complete are lost to who streams them: {stream.error!r}")
    world.streams = [stream for stream in world.streams if not stream.over]


def _images_can_be_made(world: "World") -> None:
    """One with the model that was chosen, or the only one that there is."""
    choice, image = world.commands.engine_choice(), world.here.image
    painters = sorted(each.id for each in world.here.models.values() if each.type == "diffusion")
    if choice:
        world.expect(image.accepting, "a start was answered, and generations are refused")
    if not image.accepting or not (choice in painters or (choice == "" and len(painters) == 1)):
        return
    stream = world.generate()
    world.loop.until(lambda: stream.over, FOR_EVER)
    made = "image" in stream.seen
    world.expect(made, f"no image with {choice or painters[0]}: {stream.seen[-1:]} {stream.error!r}")


def _llm_is_as_wanted(world: "World") -> None:
    wanted = world.commands.of_llm()
    if wanted is Wanted.RUN and world.here.llm.model_id not in world.here.models:
        wanted = Wanted.UNKNOWN  # it had crashed when its model was deleted
    states = {Wanted.RUN: ("RUNNING",), Wanted.STOP: ("STOPPED",), Wanted.UNKNOWN: AT_REST}[wanted]
    world.loop.until(lambda: world.here.llm.settled and world.here.llm.state in states, FOR_EVER)
    llm, living = world.here.llm, [child for child in world.nursery.living(Kind.LLM) if child.loaded]
    world.expect(llm.settled and llm.state in states, f"after all that was asked for it is to {wanted.name}: {llm}")
    if llm.state == "RUNNING":
        world.expect([child.pid for child in living] == [llm.pid], f"it is said to run, and does not: {llm}")
        world.expect(llm.saved, "the LLM runs, and is not on disk")
        world.expect(llm.model_id in world.here.models, "the model of the LLM that runs was deleted")
    elif llm.state == "STOPPED":
        world.expect(not living and not llm.saved, f"it is said to be stopped, and is not: {llm}")
