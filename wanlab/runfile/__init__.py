"""The run file: one finished HDF5 file a run; docs/runfile.md is its specification.

While a run goes on, a directory `NAME.h5.part/` holds one immutable shard a finished step and the newest resume
state; `finish` folds them into `NAME.h5` and only then removes the directory. The reason for shards: a process
killed while it has an HDF5 file open for writing can leave that file unreadable, and no flush prevents it. A shard
is written under another name, synced and renamed, so at every instant it is either whole or absent.

Shards are plain bytes (`pack`), not HDF5: nothing is compressed and no HDF5 call is made while sampling goes on.

Needs numpy and h5py only. Everything foreseeable that goes wrong is a `WanlabError`.
"""

from wanlab.runfile.fields import FORMAT_VERSION, STEP, Field
from wanlab.runfile.reader import Data, Run, completed
from wanlab.runfile.shards import part_directory
from wanlab.runfile.untrusted import Reader, read_in_child, summary
from wanlab.runfile.verify import verify
from wanlab.runfile.writer import RunWriter, remove_leftovers

__all__ = [
    "FORMAT_VERSION",
    "STEP",
    "Data",
    "Field",
    "Reader",
    "Run",
    "RunWriter",
    "completed",
    "part_directory",
    "read_in_child",
    "remove_leftovers",
    "summary",
    "verify",
]
