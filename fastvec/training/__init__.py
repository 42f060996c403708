"""The adaptation job: `job.adapt` plans, trains and saves; the parts it is made of are the other modules."""
