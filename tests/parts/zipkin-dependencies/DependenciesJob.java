import java.time.LocalDate;
import java.time.ZoneOffset;
import zipkin2.dependencies.elasticsearch.ElasticsearchDependenciesJob;

/** Links the spans of one day (UTC, yyyy-MM-dd) in the Elasticsearch that ES_HOSTS names. */
public class DependenciesJob {
  public static void main(String[] args) {
    long day = LocalDate.parse(args[0]).atStartOfDay(ZoneOffset.UTC).toInstant().toEpochMilli();
    Runnable quiet = (Runnable & java.io.Serializable) () -> {};
    ElasticsearchDependenciesJob.builder().day(day).logInitializer(quiet).build().run();
  }
}
