"""The paper's two benchmarks: BIG-bench with an LLM, PromptSource without."""
