"""What the processes of a test of ranks run: `python ranks_job.py FOLDER`, with torchrun's variables.

Rank 0 samples each spec of FOLDER/specs.json alone and by its layout, into FOLDER/NAME.alone.h5 and FOLDER/NAME.h5; an
error's message goes into FOLDER/errors.json.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from wanlab.engine import ranks, run
from wanlab.engine.run.follow import follow
from wanlab.errors import WanlabError
from wanlab.spec import RunSpec


def main(folder: Path) -> None:
    place = ranks.join()
    if place.rank:
        follow(place)
    loaded, errors = run.Models(), {}
    for name, text in json.loads((folder / "specs.json").read_text()).items():
        spec = RunSpec.from_json(text)
        began = time.perf_counter()
        try:
            run.execute(replace(spec, parallel="none"), folder / f"{name}.alone.h5", loaded=loaded)
            run.execute(spec, folder / f"{name}.h5", loaded=loaded)
        except WanlabError as error:
            errors[name] = [type(error).__name__, str(error)]
            if isinstance(error, run.JobError):
                break
        print(name, round(time.perf_counter() - began, 2), errors.get(name, ""), file=sys.stderr, flush=True)
    (folder / "errors.json").write_text(json.dumps(errors))
    ranks.quit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
