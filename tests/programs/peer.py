"""One process of a cluster without TensorFlow: peer.py INDEX WORKERS; what it receives goes to its output.

It meets the others, says so, and lives until its input is closed ('fail' there: it fails; 'hold': it keeps Python busy
for some seconds).
"""
import logging
import sys
import time

import pose_cli
from pose_cli import StopSignal
from pose_errors import Stopped, UserError
from training.cluster import Cluster
from training.coordinator import MultiProcess


def main():
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout)
    cluster = Cluster(tuple(sys.argv[2].split(',')), int(sys.argv[1]))
    with MultiProcess(cluster, StopSignal(), link_timeout=3, report_seconds=1) as coordinator:
        logging.info('agreed with %s', coordinator.all_gather('name', {'name': 'worker %d' % cluster.index}))
        for line in sys.stdin:
            if line.strip() == 'fail':
                raise UserError('the data ran out')
            if line.strip() == 'hold':
                sys.setswitchinterval(60)
                end = time.monotonic() + 8
                while time.monotonic() < end:
                    pass
                logging.info('held')
        logging.info('ended')


try:
    pose_cli.run(main)
except Stopped as stopped:
    print(stopped)
