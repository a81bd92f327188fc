"""Markers of the conformance suite."""


def pytest_configure(config):
    config.addinivalue_line("markers", "states(*keys): the statements of the page a test is about")
    config.addinivalue_line("markers", "departs(key, does, since): what the SDK does instead")
