"""Take two batches, print the ids of the loader processes as JSON, and wait to be killed."""
import json
import time

from conftest import descendants
from watched_loaders import take, watched_loader

with watched_loader(200, workers=2) as (loader, supervisor):
    take(loader, 2)
    print(json.dumps([supervisor] + descendants(supervisor)), flush=True)
    time.sleep(60)
