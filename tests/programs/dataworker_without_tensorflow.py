"""pose_dataworker.py with its flags, as on a machine that has no TensorFlow: importing it fails."""
import os
import runpy
import sys

sys.modules['tensorflow'] = None
sys.path[0] = os.getcwd()
sys.argv[0] = 'pose_dataworker.py'
runpy.run_path('pose_dataworker.py', run_name='__main__')
