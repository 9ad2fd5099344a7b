"""What is SGLang's own: flags, paths, log lines, metric names and packages, by release."""
