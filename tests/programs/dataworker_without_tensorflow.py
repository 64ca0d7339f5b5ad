"""pose_dataworker.py with its flags, as on a machine that has no TensorFlow: importing it fails."""
import runpy
import sys

sys.modules['tensorflow'] = None
sys.argv[0] = 'pose_dataworker.py'
runpy.run_module('pose_dataworker', run_name='__main__')
