"""The image engine: stable-diffusion.cpp in a child process, driven by frames on stdin.

It gets `load`, `generate` and `cancel`, and answers with `loading`, `ready`, `failed`, `stage`, `image`, `done`,
`cancelled`, `error` and `log` (see `image/core/process.py`, its other end). It exits when stdin ends.
"""

import io
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Final

from genaid_server.supervision import frames
from genaid_server.supervision.lifeline import die_with_parent, take_pipes

CANCEL_AGAIN: Final = 0.02  # seconds; a cancel that comes before sampling begins is forgotten by the library
PNG_COMPRESSION: Final = 3  # of 9: a tenth of the time of the default, a few per cent larger

NO_LIBRARY: Final = "cyllama, the library that makes images, is not installed; it has no build for some systems."

COMPONENTS: Final = {
    "diffusion_model": "diffusion_model_path",
    "clip_l": "clip_l_path",
    "clip_g": "clip_g_path",
    "t5xxl": "t5xxl_path",
    "llm": "llm_path",
    "vae": "vae_path",
    "tae": "taesd_path",
}

_SOURCE = re.compile(r"^\S+\.(?:cpp|hpp|h|c):\d+\s+- ")
_GENERATING = re.compile(r"generating image: (\d+)/\d+ - seed")
_DECODING = re.compile(r"decoding \d+ latents")
_DECODED = re.compile(r"latent (\d+) decoded")
_LOADING = re.compile(r"loading \d+/\d+ tensors from")


class Output:
    """Writes frames; callbacks of the library and the command loop share it."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, event: str, payload: bytes = b"", **values: object) -> None:
        """Send one frame; without a parent to read it, end."""
        data = memoryview(frames.encode({"event": event, **values}, payload))
        with self._lock:
            try:
                while data:
                    data = data[self._pipe.write(data) :]
            except OSError:
                os._exit(0)


class Job:
    """One job, from the moment that it is read."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.command = command
        self.cancelled = threading.Event()
        self.finished = threading.Event()


class DiffusionEngine:
    """One model in memory, and the job that is being computed with it."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._context: Any = None
        self._vae_tiling = False
        self._job: Job | None = None
        self._accepted: Job | None = None
        self._decoding = False
        self._image = 1
        self._loading = False
        self._errors: list[str] = []
        self._said = ""

    def load(self, command: dict[str, Any]) -> None:
        """Load the model that the command describes."""
        try:
            from cyllama import sd
        except ModuleNotFoundError:
            self._output.send("failed", message=NO_LIBRARY)
            return

        sd.set_log_callback(self._on_log)
        sd.set_progress_callback(self._on_progress)
        options = command["options"]
        params = sd.SDContextParams(model_path=command["model"], n_threads=command["threads"])
        for component, path in command["components"].items():
            setattr(params, COMPONENTS[component], path)
        params.eager_load = True
        params.enable_mmap = options["memory_map"]
        params.diffusion_flash_attn = options["flash_attention"]
        on_cpu = [module for module, key in (("te", "clip_on_cpu"), ("vae", "vae_on_cpu")) if options[key]]
        if on_cpu:
            params.backend = ",".join(f"{module}=cpu" for module in on_cpu)
        if options["offload_to_cpu"]:
            params.params_backend = "cpu"
        if options["max_vram_bytes"]:
            params.max_vram = f"{options['max_vram_bytes'] / 2**30:.3f}"
        self._vae_tiling = options["vae_tiling"]
        self._loading, self._errors = True, []
        try:
            self._context = sd.SDContext(params)
        except (RuntimeError, FileNotFoundError, ValueError, MemoryError) as error:
            causes = self._errors or [str(error)]
            self._output.send("failed", message="\n".join(causes))
            return
        finally:
            self._loading = False
        self._output.send("ready")

    def accept(self, command: dict[str, Any]) -> "Job":
        """Take note of a job that has been queued: a cancel may be meant for it (called from the reading thread)."""
        self._accepted = Job(command)
        return self._accepted

    def cancel(self, name: str) -> None:
        """Stop the job, or keep it from starting (called from the reading thread)."""
        job = self._accepted
        if job is not None and job.command["job"] == name and not job.finished.is_set():
            job.cancelled.set()
            threading.Thread(target=self._press_cancel, args=(job,), daemon=True).start()

    def _press_cancel(self, job: "Job") -> None:
        from cyllama import sd

        while not job.finished.is_set():
            if self._job is job:
                self._context.cancel(sd.CancelMode.ALL)
            job.finished.wait(CANCEL_AGAIN)

    def generate(self, job: "Job") -> None:
        """Compute the images of one job and send them."""
        self._job, self._decoding, self._image, self._errors = job, False, 1, []
        event, message = "cancelled", ""
        try:
            if not job.cancelled.is_set():
                images = self._compute(job.command)
                if not job.cancelled.is_set():
                    self._send_images(job.command, images)
                    event = "done"
        except (RuntimeError, ValueError, MemoryError, OSError) as error:
            if not job.cancelled.is_set():
                event, message = "error", "\n".join(self._errors or [str(error)])
        self._job = None
        job.finished.set()
        self._output.send(event, job=job.command["job"], message=message)

    def _compute(self, job: dict[str, Any]) -> list[Any]:
        from cyllama import sd

        samplers = {sd.sample_method_name(method): method for method in sd.SampleMethod if method.name != "COUNT"}
        images: list[Any] = self._context.generate(
            prompt=job["prompt"],
            negative_prompt=job["negative_prompt"],
            width=job["width"],
            height=job["height"],
            seed=job["seed"],
            batch_count=job["count"],
            sample_steps=job["steps"],
            cfg_scale=job["cfg_scale"],
            sample_method=samplers[job["sampler"]],
            vae_tiling=self._vae_tiling,
        )
        return images

    def _send_images(self, job: dict[str, Any], images: list[Any]) -> None:
        for index, image in enumerate(images):
            seed = job["seed"] + index
            pixels = image.to_numpy()
            png = encode_png(pixels, parameters(job, seed, image.width, image.height))
            self._output.send(
                "image", png, job=job["job"], index=index, seed=seed, width=image.width, height=image.height
            )

    def _on_log(self, level: int, text: str) -> None:
        message = _SOURCE.sub("", text.strip())
        name = {2: "INFO", 3: "WARN", 4: "ERROR"}.get(int(level), "DEBUG")
        if name != "DEBUG" or message != self._said:  # it says the same of every step
            self._output.send("log", level=name, message=message)
        self._said = message
        if name == "ERROR":
            self._errors.append(message)
        if self._job is not None:
            self._follow(message)

    def _follow(self, message: str) -> None:
        """Tell from a log line where the job is."""
        if found := _GENERATING.search(message):
            self._image = int(found[1])
            self._stage("diffusion", 0, self._steps)
        elif _DECODING.search(message):
            self._decoding, self._image = True, 1
            self._stage("decoding", 0, 0)
        elif (found := _DECODED.search(message)) and int(found[1]) < self._count:
            self._image = int(found[1]) + 1
            self._stage("decoding", 0, 0)
        elif _LOADING.search(message):
            self._loading = True
        elif message.startswith("loading tensors completed"):
            self._loading = False

    def _on_progress(self, step: int, steps: int, _seconds: float) -> None:
        if self._job is None:
            self._output.send("loading", done=step, total=steps)
        elif not self._loading and not self._decoding:
            self._stage("diffusion", step, steps)
        # The library loads with the interpreter lock held: this lets the reading thread see the end of stdin.
        time.sleep(0)

    def _stage(self, stage: str, step: int, steps: int) -> None:
        if self._job is not None:
            self._output.send(
                "stage",
                job=self._job.command["job"],
                stage=stage,
                image=self._image,
                step=min(step, self._steps),
                steps=steps,
            )

    @property
    def _steps(self) -> int:
        return int(self._job.command["steps"]) if self._job else 0

    @property
    def _count(self) -> int:
        return int(self._job.command["count"]) if self._job else 0


def parameters(job: dict[str, Any], seed: int, width: int, height: int) -> str:
    """How the image was made, in the form that other image tools write into the `parameters` text chunk.

    Line breaks and NUL in a prompt would end its part early, so they become spaces.
    """

    def line(text: str) -> str:
        return " ".join(text.replace("\0", " ").split())

    lines = [line(job["prompt"])]
    if job["negative_prompt"]:
        lines.append(f"Negative prompt: {line(job['negative_prompt'])}")
    lines.append(
        f"Steps: {job['steps']}, Sampler: {job['sampler']}, CFG scale: {job['cfg_scale']:g}, Seed: {seed}, "
        f"Size: {width}x{height}, Model: {line(job['model_name'])}, Version: genaid"
    )
    return "\n".join(lines)


def encode_png(pixels: Any, text: str) -> bytes:
    """A PNG of the pixels (height x width x 3, 8 bit) with its parameters."""
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", pnginfo=info, compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def read_commands(pipe: BinaryIO, engine: DiffusionEngine, work: "queue.SimpleQueue[Callable[[], None]]") -> None:
    """Pass commands on until stdin ends, and then end the process, whatever it computes."""
    reader = frames.FrameReader()
    while data := pipe.read(65536):
        for frame in reader.feed(data):
            command = frame.header
            match command["op"]:
                case "cancel":
                    engine.cancel(command["job"])
                case "generate":
                    work.put(partial(engine.generate, engine.accept(command)))
                case "load":
                    work.put(partial(engine.load, command))
    os._exit(0)


def main() -> None:
    """Run until stdin ends."""
    incoming, outgoing = take_pipes()
    die_with_parent()
    engine = DiffusionEngine(Output(outgoing))
    work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    threading.Thread(target=read_commands, args=(incoming, engine, work), daemon=True).start()
    while True:
        work.get()()


if __name__ == "__main__":
    main()
