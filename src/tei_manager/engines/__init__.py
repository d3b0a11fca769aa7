"""Pure knowledge of the inference programs: argv, environment, probes, log lines, exits. No I/O."""
