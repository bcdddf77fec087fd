"""From records to tables and verdicts, and the words for them."""
