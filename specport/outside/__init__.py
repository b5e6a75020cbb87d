"""Read what others wrote: files bounded in size, depth and numbers, and checked against a type."""

from specport.outside.format import Format, Table
from specport.outside.regular_file import read_bytes, read_given

__all__ = ["Format", "Table", "read_bytes", "read_given"]
