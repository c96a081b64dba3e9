"""What tests of several folders have in common: servers, receivers, proxies and samples."""
