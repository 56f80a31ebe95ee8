"""Peak memory and time of comparing two 121-frame 1280x720 clips: python -m benchmarks.compare_memory"""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from wanlab.analysis.compare import measure
from wanlab.video import FPS, write_mp4_from

FRAMES, SIZE = 121, (1280, 720)


def film(path: Path, shift: int) -> Path:
    """A soft pattern that moves two pixels a frame."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]

    def frame(t: int) -> np.ndarray:
        wave = np.sin((x + 2 * t + shift) / 40) * np.cos(y / 60)
        return np.repeat(((wave + 1) * 127).astype(np.uint8)[..., None], 3, axis=-1)

    write_mp4_from(path, (frame(t) for t in range(FRAMES)), SIZE, FPS)
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        a, b = (film(Path(folder) / f"{n}.mp4", s) for n, s in (("a", 0), ("b", 1)))
        began = time.perf_counter()
        pair = measure(a, b)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{FRAMES} frames of {SIZE[0]}x{SIZE[1]}: peak {peak:.2f} GiB, {seconds:.0f} s, "
        f"PSNR {pair.figures['psnr']:.2f} dB"
    )


if __name__ == "__main__":
    main()
