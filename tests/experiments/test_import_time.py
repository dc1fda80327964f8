"""Help comes quickly and without TensorFlow."""

import json

HELP = """
import json, runpy, sys, time
sys.argv[1:] = ["--help"]
try:
    runpy.run_module("experiments.supervised.digits_mlp", run_name="__main__", alter_sys=True)
except SystemExit as leave:
    status = leave.code
print()
print(json.dumps({
    "status": status,
    # The processor's time, for this machine may be busy.
    "seconds": time.process_time(),
    "heavy": [name for name in ("tensorflow", "tensorflow_datasets", "grain", "sklearn",
                                "matplotlib") if name in sys.modules],
}))
"""


def test_help_is_quick_and_brings_no_tensorflow(python):
    done = python("-c", HELP)
    assert done.returncode == 0, done.stderr
    *text, found = done.stdout.strip().splitlines()
    found = json.loads(found)
    assert found["status"] in (0, None)
    assert found["heavy"] == []
    assert found["seconds"] < 5
    shown = "\n".join(text)
    for option in (
        *("--seeds", "--steps", "--evaluate-every", "--smoke", "--run-dir", "--data-dir"),
        *("--mesh", "--precision", "--debug", "--width"),
    ):
        assert option in shown
    assert "usage: python -m experiments.supervised.digits_mlp" in shown
