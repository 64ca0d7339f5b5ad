"""How soon each command answers --help and calls that cannot work: wrong flags and missing paths.

    python3 benchmarks/bench_start.py [--json] [--commands pose_eval.py ...]

Seconds of whole processes, and the processor's part of them, which other work on the machine does not lengthen.
"""
import json
import os
import subprocess
import sys
import time

from bench_inputs import ROOT, flag_parser
from pose_errors import UserError

WRONG_CALLS = {
    'train.py': ['--model=openpos', '--batchsize=100000000', '--datapath=nowhere', '--lr=fast', '--no-such-flag'],
    'pose_eval.py': ['--graph=nowhere.pb --images=benchmarks', '--checkpoint=nowhere --model=cmu --images=benchmarks',
                     '--weights=nowhere.npy --images=benchmarks', '--oracle --datapath=nowhere', '--no-such-flag'],
    'pose_dataset.py': ['--output-dir=out', '--datapath=nowhere --output-dir=out', '--datapath=benchmarks '
                        '--output-dir=out', '--datapath=. --output-dir=out --input-width=100', '--no-such-flag'],
    'pose_dataworker.py': ['--master=nowhere', '--master=tcp://trainer:1 --datapath=nowhere', '--workers=0',
                           '--master=tcp://trainer:1 --datapath=benchmarks', '--no-such-flag'],
    'scripts/freeze_and_optimize.py': ['--model=openpos --checkpoint=x --output-dir=out', '--graph=nowhere.pb '
                                       '--output-dir=out', '--model=cmu --checkpoint=nowhere --output-dir=out',
                                       '--model=cmu --checkpoint=x --input-size=100x100 --output-dir=out',
                                       '--no-such-flag'],
    'scripts/check_gpus.py': ['--models=openpos', '--towers=0', '--batchsize=x', '--input-size=100x100',
                              '--no-such-flag'],
    'scripts/transform_graph.py': ['--in_graph=nowhere.pb --out_graph=x.pb --transforms=x', '--in_graph=nowhere.pb',
                                   '--transforms=x', '', '--no-such-flag'],
    'scripts/plot_loss.py': ['nowhere', 'benchmarks', 'benchmarks --shares', '', '--no-such-flag'],
    'scripts/report.py': ['nowhere', 'benchmarks', 'README.md', '', '--no-such-flag'],
    'scripts/export_weights.py': ['--checkpoint=nowhere --output=x.npy', '--checkpoint=benchmarks --output=x.npy',
                                  '--checkpoint=nowhere --output=x', '--output=x.npy', '--no-such-flag'],
    'scripts/make_sample_coco.py': ['--output-dir=README.md', '--output-dir=out --train=-1', '--output-dir=out --val=x',
                                    '--output-dir=out --train=0 --val=0', '--no-such-flag'],
    'scripts/make_curve_keys.py': ['--output-dir=README.md', '--output-dir=out --worker=a/b', '--worker=trainer',
                                   '--output-dir=README.md/x', '--no-such-flag'],
}


def measure(command, arguments, code):
    """(seconds, processor seconds) of a call that ends with an exit code. Raises UserError when it ends with another.

    It runs where its files would do no harm if it worked after all.
    """
    begin, before = time.monotonic(), os.times()
    process = subprocess.run([sys.executable, command] + arguments.split(), cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, universal_newlines=True)
    seconds, after = time.monotonic() - begin, os.times()
    if process.returncode != code:
        raise UserError('%s %s ends with exit code %d: %s'
                        % (command, arguments, process.returncode, process.stderr[-300:]))
    return seconds, (after.children_user + after.children_system) - (before.children_user + before.children_system)


def main():
    parser = flag_parser('Time --help and wrong calls of the commands.')
    parser.add_argument('--commands', nargs='+', choices=sorted(WRONG_CALLS), metavar='COMMAND',
                        default=list(WRONG_CALLS), help='which (all)')
    flags = parser.parse_args()
    print('%-32s %9s %9s %12s %9s' % ('', '--help s', 'cpu s', 'wrong, max s', 'cpu s'))
    figures = {}
    for command in flags.commands:
        seconds, cpu = measure(command, '--help', 0)
        wrong = [measure(command, arguments, 2) for arguments in WRONG_CALLS[command]]
        figures[command] = {'help_s': round(seconds, 2), 'help_cpu_s': round(cpu, 2),
                            'wrong_s': round(max(wrong)[0], 2), 'wrong_cpu_s': round(max(c for _, c in wrong), 2)}
        print('%-32s %9.2f %9.2f %12.2f %9.2f' % ((command,) + tuple(figures[command].values())), flush=True)
    if flags.json:
        print(json.dumps(figures))


if __name__ == '__main__':
    import pose_cli
    pose_cli.run(main)
