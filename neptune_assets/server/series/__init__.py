"""Points of series: from the lake's Parquet parts and from the store, along the lines of forks. No wire forms."""
