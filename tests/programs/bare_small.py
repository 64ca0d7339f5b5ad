"""benchmarks/bare_training.py with the small network of the tests."""
import small_network  # noqa: F401
import bare_training

bare_training.main()
