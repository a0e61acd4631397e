"""Makes the file systems of the tests known to every Python process of a run: the command line and its workers."""

import faulty_files

faulty_files.plant()
