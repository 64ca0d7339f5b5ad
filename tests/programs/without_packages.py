"""A command of the project where packages cannot be imported: PACKAGE[,PACKAGE...] COMMAND.py FLAGS..."""
import os
import runpy
import sys

sys.modules.update(dict.fromkeys(sys.argv[1].split(',')))
sys.path[0] = os.getcwd()
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name='__main__')
