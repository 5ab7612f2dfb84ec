# OpenSearch 2.19, the newest version that both Zipkin's store and its dependencies job are tried with: the job asks for
# Elasticsearch 7, and 3.x can no longer answer as one. If nixpkgs has 3.x, only the version is replaced.
{
  lib,
  fetchurl,
  opensearch,
}:
if lib.versionOlder opensearch.version "3" || !opensearch ? src then
  opensearch
else
  opensearch.overrideAttrs (
    finalAttrs: old: {
      version = "2.19.6";
      src = fetchurl {
        url = "https://artifacts.opensearch.org/releases/bundle/opensearch/${finalAttrs.version}/opensearch-${finalAttrs.version}-linux-x64.tar.gz";
        hash = "sha256-Spe/QVEyxdaQA2sUM7IkjnvDaARF3brwWjO5Bl5B2Ns=";
      };
      # nixpkgs installs, and its module links, a folder that only 3.x has
      postPatch = old.postPatch or "" + "mkdir -p agent";
    }
  )
