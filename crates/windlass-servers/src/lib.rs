//! Private servers and a faulty network for the tests of Windlass.
