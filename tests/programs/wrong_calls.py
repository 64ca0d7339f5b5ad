"""Commands in this process, one call after the other, where nothing slow can be imported.

Reads [[command, arguments], ...] as JSON, prints [[exit code, stdout, stderr], ...].
"""
import contextlib
import io
import json
import os
import runpy
import sys

SLOW = ('tensorflow', 'tensorpack', 'matplotlib', 'keras', 'h5py')

sys.modules.update(dict.fromkeys(SLOW))
sys.path[0] = os.getcwd()
results = []
for command, arguments in json.load(sys.stdin):
    sys.argv = [command] + arguments
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(command, run_name='__main__')
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            print('%s: %s' % (type(error).__name__, error), file=err)
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
