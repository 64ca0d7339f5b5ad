"""Which sample comes when, the form of a batch, and the processes that make batches."""
