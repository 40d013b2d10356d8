"""The flags of train.py. Neither JAX nor the models are needed to read them, so --help is answered
at once.
"""

from __future__ import annotations

import sys

from absl import app, flags

from lambdanet.config_flag import ConfigFlag, define_path

HELP = ("-h", "-help", "--help", "-helpshort", "--helpshort")


def define() -> ConfigFlag:
    """Defines the flags and returns the one of the config; asked for help, prints it and ends the
    program.
    """
    main = dict(module_name=sys.argv[0])  # whose flags --help shows
    config = ConfigFlag("configs/digits.py", **main)
    workdir = "the run's directory; a run there goes on"
    define_path("workdir", workdir, required=True)
    joins = "join the other processes before anything else"
    flags.DEFINE_bool("distributed", False, joins, **main)
    coordinator = "process 0, host:port; none = by the cluster"
    flags.DEFINE_string("coordinator_address", None, coordinator, **main)
    processes = "number of processes; none = by the cluster"
    flags.DEFINE_integer("num_processes", None, processes, **main)
    process = "number of this process; none = by the cluster"
    flags.DEFINE_integer("process_id", None, process, **main)
    if any(argument in HELP for argument in sys.argv[1:]):
        app.usage(writeto_stdout=True, shorthelp=True, exitcode=0)
    return config
