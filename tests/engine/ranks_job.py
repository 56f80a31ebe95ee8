"""What the processes of a test of ranks run: `python ranks_job.py FOLDER`, with torchrun's variables.

Rank 0 samples each spec of FOLDER/specs.json by its layout into FOLDER/NAME.h5, and alone into the file that
FOLDER/alone.json names; errors go into FOLDER/errors.json.
"""

import json
import sys
import zlib
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
    loaded, errors, alone = run.Models(), {}, {}
    for name, text in json.loads((folder / "specs.json").read_text()).items():
        spec = RunSpec.from_json(text)
        try:
            one = replace(spec, parallel="none")
            alone[name] = str(folder / f"{zlib.crc32(one.to_json().encode()):x}.h5")  # several layouts have the same
            run.execute(one, alone[name], loaded=loaded)
            run.execute(spec, folder / f"{name}.h5", loaded=loaded)
        except WanlabError as error:
            errors[name] = [type(error).__name__, str(error)]
            if isinstance(error, run.JobError):
                break
    (folder / "alone.json").write_text(json.dumps(alone))
    (folder / "errors.json").write_text(json.dumps(errors))
    ranks.quit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
