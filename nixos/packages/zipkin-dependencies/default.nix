# The job that links the spans of a day: it draws which service calls which. Nobody publishes it as one file, so it is put
# together from the jars that lock.json names; `./update` writes that file from the pom.xml of tests/parts.
{
  lib,
  stdenvNoCC,
  fetchurl,
  jdk17_headless,
  makeWrapper,
}:
let
  jars = lib.mapAttrsToList (
    path: hash:
    fetchurl {
      url = "mirror://maven/${path}";
      inherit hash;
    }
  ) (lib.importJSON ./lock.json);
  # what Spark wants opened of Java's own packages
  opened = map (name: "--add-opens=java.base/${name}=ALL-UNNAMED") [
    "java.io"
    "java.lang"
    "java.lang.invoke"
    "java.lang.reflect"
    "java.net"
    "java.nio"
    "java.util"
    "java.util.concurrent"
    "java.util.concurrent.atomic"
    "jdk.internal.ref"
    "sun.nio.ch"
    "sun.nio.cs"
    "sun.security.action"
    "sun.util.calendar"
  ];
in
stdenvNoCC.mkDerivation {
  pname = "zipkin-dependencies";
  version = "3.2.0";

  src = ../../../tests/parts/zipkin-dependencies/DependenciesJob.java;
  dontUnpack = true;
  # Java 17 and no other: Spark 3.4 does not start on a newer one
  nativeBuildInputs = [
    jdk17_headless
    makeWrapper
  ];

  # `zipkin-dependencies YYYY-MM-DD` links that day (UTC) in the storage that ES_HOSTS names
  installPhase = ''
    runHook preInstall
    lib=$out/share/zipkin-dependencies
    mkdir -p $lib
    for jar in ${toString jars}; do
      ln -s $jar $lib/$(stripHash $jar)
    done
    cp $src DependenciesJob.java
    javac -cp "$lib/*" -d $lib DependenciesJob.java
    makeWrapper ${lib.getExe' jdk17_headless "java"} $out/bin/zipkin-dependencies \
      --add-flags "\$JAVA_OPTS ${toString opened} --add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED" \
      --add-flags "-Dspark.ui.enabled=false -cp '$lib/*:$lib' DependenciesJob"
    runHook postInstall
  '';

  meta = {
    description = "Job that links the spans of a day for Zipkin's graph of dependencies";
    homepage = "https://github.com/openzipkin/zipkin-dependencies";
    license = lib.licenses.asl20;
    mainProgram = "zipkin-dependencies";
    platforms = lib.platforms.linux;
    sourceProvenance = [ lib.sourceTypes.binaryBytecode ];
  };
}
