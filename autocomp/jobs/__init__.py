"""A search as a job on a Ray cluster that shares no disk with who asks for it: what is sent, how it is followed, and how
the run folder comes back."""
