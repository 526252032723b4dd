"""What engines were seen to take of main memory, kept on disk: a measurement is better than an estimate."""

import json
import logging
from pathlib import Path
from typing import Final

from genaid_server.kit.files import write_atomic
from genaid_server.resource.core.fitting.plan import LlmOptions
from genaid_server.resource.core.leases.ways import ImageNeed

log = logging.getLogger(__name__)

MAX_KNOWN: Final = 500
"""How many peaks are kept; those that were learned the longest ago are forgotten."""
MOST: Final = 2**50
"""No engine takes more bytes than that."""


class Usage:
    """The peaks that were measured, by a key that says what was running and how; in one JSON file."""

    def __init__(self, file: Path) -> None:
        """An unreadable file is begun anew."""
        self._file = file
        self._peaks: dict[str, int] = {}
        try:
            stored = json.loads(file.read_bytes())
            self._peaks = {key: _checked(peak) for key, peak in stored.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            log.warning("what engines took of memory, %s, is unreadable and begun anew: %s", file.name, error)
        self._forget()

    def known(self, key: str) -> int | None:
        """Bytes of main memory that were taken at most, None where that was never measured."""
        return self._peaks.get(key)

    def learn(self, key: str, peak_ram: int) -> None:
        """Take in a peak in bytes, which counts where it is higher than the one that is known. What can't be is passed
        over. Where the disk refuses, it is known until the process ends."""
        if not 0 < peak_ram <= MOST:
            return
        before = self._peaks.pop(key, 0)
        self._peaks[key] = max(before, peak_ram)  # now the newest
        if peak_ram > before:
            self._forget()
            self._write()

    def _forget(self) -> None:
        while len(self._peaks) > MAX_KNOWN:
            del self._peaks[next(iter(self._peaks))]

    def _write(self) -> None:
        try:
            write_atomic(self._file, json.dumps(self._peaks, indent=1).encode(), durable=False)
        except OSError as error:  # a measurement is not worth an image
            log.warning("what engines took of memory could not be written: %s", error)


def image_key(model_id: str, size_bytes: int, need: ImageNeed) -> str:
    """What tells the memory of one image engine from that of another. `size_bytes` is that of the model's files, which
    may be other ones under the same id some day; `need` has what was chosen for the engine."""
    options = {
        "flash": need.flash_attention,
        "tiles": need.vae_tiling,
        "offload": need.offload_to_cpu,
        "clip-cpu": need.clip_on_cpu,
        "vae-cpu": need.vae_on_cpu,
        f"vram-{need.max_vram_bytes}": bool(need.max_vram_bytes),
    }
    chosen = ",".join(name for name, on in options.items() if on)
    return f"image|{model_id}|{size_bytes}|{need.variant}|{chosen}|{need.width}x{need.height}"


def llm_key(model_id: str, size_bytes: int, config: LlmOptions, memory_map: bool) -> str:
    """The same of an LLM engine; a model that is mapped is not in its own memory."""
    options = {
        "flash": config.flash_attention,
        "experts-cpu": config.experts_on_cpu,
        "map": memory_map,
    }
    chosen = ",".join(name for name, on in options.items() if on)
    caches = f"{config.cache_type_k.value},{config.cache_type_v.value}"
    context = f"{config.context_size}x{config.parallel}"
    return f"llm|{model_id}|{size_bytes}|{chosen}|{caches}|{config.gpu_layers}|{config.threads}|{context}"


def _checked(peak: object) -> int:
    if not isinstance(peak, int) or isinstance(peak, bool) or not 0 < peak <= MOST:
        raise ValueError(f"a peak of {str(peak)[:40]}")
    return peak
