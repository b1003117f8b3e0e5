"""A package that lies in the code of a job."""

WORD = "hello"
