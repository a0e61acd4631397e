"""An index whose manifest is to be had, so that a run is submitted, and whose host is gone when workers fetch it.

Processes that have this module in their ``sitecustomize`` know its scheme.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, BinaryIO

from apache_beam.io.localfilesystem import LocalFileSystem

from beam_dp.embeddings.manifest import DATA_FILES

PORT = "BEAM_DP_TEST_INDEX_PORT"


class LostShelf(LocalFileSystem):
    """Local files under a scheme that the package takes for remote; the data of an index is behind a port of its own.

    Nobody listens there.
    """

    @classmethod
    def scheme(cls) -> str:
        """As in ``lost-shelf:///folder/index``."""
        return "lost-shelf"

    def open(self, path: str, *args: Any, **kwargs: Any) -> BinaryIO:
        """As a local file, or ConnectionRefusedError for the data of an index."""
        local = Path(path.removeprefix("lost-shelf://"))
        if local.name in DATA_FILES:
            socket.create_connection(("localhost", int(os.environ[PORT]))).close()
        return super().open(str(local), *args, **kwargs)
