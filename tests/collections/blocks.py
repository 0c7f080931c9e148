"""Locators and sizes that tests of manifests share."""

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
BAR = "37b51d194a7513e45b56f6524f2d51f2+3"
EMPTY = "d41d8cd98f00b204e9800998ecf8427e+0"
#: The most bytes of a file.
MOST = 2**63 - 1
