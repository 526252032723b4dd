"""Draws one picture with the real engine, and prints how much memory that took as JSON.

`loaded` is what loading left resident, `peak` the most that was resident, both in bytes above what the process had
after the import of the engine. It ends on the last line of its stdout; the engine may print others before.
"""

import argparse
import json
import sys
from pathlib import Path

import psutil

STEPS = 2


def peak() -> int:
    """The most that this process has had resident so far, in bytes."""
    if sys.platform == "linux":
        # The figure of getrusage would be the parent's, where that was larger when it started this process.
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    elif sys.platform == "win32":  # noqa: RET505 - mypy takes what follows a return for unreachable
        return int(psutil.Process().memory_info().peak_wset)
    else:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=json.loads, help="paths by the names of SDContextParams, as JSON")
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("--flash-attention", action="store_true")
    parser.add_argument("--vae-tiling", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parse()
    from cyllama import sd

    before = psutil.Process().memory_info().rss
    params = sd.SDContextParams(n_threads=1)
    for name, path in options.files.items():
        setattr(params, name, path)
    params.eager_load = True
    params.diffusion_flash_attn = options.flash_attention
    context = sd.SDContext(params)
    loaded = psutil.Process().memory_info().rss
    context.generate(
        prompt="a cat",
        width=options.width,
        height=options.height,
        seed=1,
        sample_steps=STEPS,
        cfg_scale=1.0,
        vae_tiling=options.vae_tiling,
    )
    print(json.dumps({"loaded": loaded - before, "peak": peak() - before}), flush=True)


if __name__ == "__main__":
    main()
