"""JAVA_OPTIONS: what the Java processes of Spark are started with."""

JAVA_OPTIONS = "-XX:-DontCompileHugeMethods -XX:G1HeapRegionSize=16m"
"""Spark generates one method for all columns of a stage, and Java leaves one of over 8,000 bytes interpreted: several
times slower. And Spark keeps cached rows in arrays of a megabyte, each of which takes two of the regions of a small
heap: twice the memory that Spark believes, until there is none. Executors get the options here; a driver that
spark-submit has started needs --driver-java-options."""
