"""Who answers: the frozen LLMs that propose candidates."""
