"""Runs scripts as `python script` would, without importing torch and transformers anew for each: a process that has them forks.

An extraction of the kit takes 0.6 s in place of 9 s on two busy cores, and the tests run some 90 scripts. Calls of `main`
would not do: constants are read at import, and some scripts are killed, or are several ranks at once.

Reads one JSON object a line, {argv, cwd, envs, stdout, stderr, kill_after}; runs the script once for each environment,
side by side, and answers with the list of exit statuses. With `kill_after` (seconds), the script is killed then, with all
that it has started. The output files of the second and later processes end in their number. Started by helpers.py.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import time
import traceback


def run_script(argv: list[str]) -> int:
    """Runs a script file as __main__ and returns its exit status."""
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 - what the interpreter does with an exception that nobody catches
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    import accelerate  # noqa: F401
    import numpy  # noqa: F401
    import transformers
    from transformers.models.bert import modeling_bert  # noqa: F401
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401
    from transformers.models.xlm_roberta import modeling_xlm_roberta  # noqa: F401

    transformers.AutoTokenizer  # noqa: B018 (loads it)
    for line in sys.stdin:
        job = json.loads(line)
        children = [start(job, number) for number in range(len(job["envs"]))]
        print(json.dumps([wait(child, job["kill_after"]) for child in children]), flush=True)


def start(job: dict, number: int) -> int:
    """Forks a process that runs the script in one of its environments. Returns the process id."""
    child = os.fork()
    if job["kill_after"] is not None:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(child, child)  # in the child, and in the parent: whoever comes first
    if child == 0:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            path = job[name] + (str(number) if number else "")
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["envs"][number])
        status = run_script(job["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return child


def wait(child: int, kill_after: float | None) -> int:
    """The exit status of a process, which is killed with its group after `kill_after` seconds."""
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
