"""The HTTP service: in front of an LLM, its best answers; and a scorer's scores and rankings."""
